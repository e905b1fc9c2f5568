"""The builder of the sample corpus; its front end is ``scripts/make_sample_data.py``."""
