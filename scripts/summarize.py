"""Mean and deviation over runs: python scripts/summarize.py RUN_FOLDER RUN_FOLDER ...

Reads each run's metrics.json and prints one Markdown table, a row per task, in percent.
"""

from multimodal.cli.summarize import command

if __name__ == "__main__":
    command()
