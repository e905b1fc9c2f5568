"""Where every module is tested: by its namesake under `unit/`, or where this table says."""

import ast
import functools
import re
from pathlib import Path

import pytest
from marks import some

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
PACKAGE = ROOT / "multimodal"
MODULES = sorted(
    str(path.relative_to(PACKAGE).with_suffix(""))
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)

# Module -> the test that covers it, where there is no namesake.
ELSEWHERE = {
    "cli/__main__": "unit/cli/program/test_commands.py",
    "cli/adapters": "unit/cli/program/test_commands.py",
    "cli/curate": "unit/data/shards/test_curation.py",
    "cli/embed": "unit/cli/program/test_commands.py",
    "cli/evaluate": "unit/cli/program/test_commands.py",
    "cli/jobs/folder": "unit/core/test_lock.py",
    "cli/jobs/job": "unit/cli/test_main.py",
    "cli/jobs/launching": "unit/cli/test_errors.py",
    "cli/jobs/cpu": "unit/cli/test_main.py",
    "cli/jobs/records": "unit/core/test_files.py",
    "cli/jobs/start_time": "unit/cli/test_errors.py",
    "cli/jobs/sweep": "unit/cli/test_errors.py",
    "cli/join_checkpoint": "unit/cli/program/test_commands.py",
    "cli/make_shards": "unit/cli/program/test_commands.py",
    "cli/packing/lengths": "unit/data/packing/test_measure_lengths.py",
    "cli/packing/options": "unit/data/packing/test_pack.py",
    "cli/packing/show": "unit/data/packing/test_pack.py",
    "cli/program/drafting": "unit/cli/test_new.py",
    "cli/program/experiment": "unit/cli/test_new.py",
    "cli/search": "unit/cli/program/test_commands.py",
    "cli/serve": "unit/cli/program/test_commands.py",
    "cli/train": "unit/cli/program/test_commands.py",
    "cli/weights/card": "unit/inference/export/test_card.py",
    "cli/weights/publish": "unit/inference/publish/test_publishing.py",
    "cli/weights/pretrained": "unit/cli/weights/test_catalogue.py",
    "config/annotations": "unit/config/test_checking.py",
    "config/blame": "unit/config/test_instantiating.py",
    "config/building": "unit/config/test_instantiating.py",
    "config/composing/catalogue": "unit/cli/weights/test_catalogue.py",
    "config/composing/command_line": "unit/config/test_confinement.py",
    "config/composing/compose_once": "unit/config/rules/test_rules_fusion.py",
    "config/composing/confinement": "unit/config/test_confinement.py",
    "config/foreign_errors": "unit/config/test_choices.py",
    "config/portable": "unit/config/test_checking.py",
    "config/problems": "unit/config/test_confinement.py",
    "config/rules/connected": "unit/config/rules/test_rules_connected.py",
    "config/rules/data": "unit/config/rules/test_rules_fusion.py",
    "config/rules/distributed": "unit/config/rules/test_rules_fusion.py",
    "config/rules/evaluation": "unit/config/rules/test_rules_fusion.py",
    "config/rules/fusion": "unit/config/rules/test_rules_fusion.py",
    "config/rules/joint": "unit/config/rules/test_rules_joint.py",
    "config/rules/monitors": "unit/config/rules/test_rules_fusion.py",
    "config/rules/optimizers": "unit/training/callbacks/test_schedule_free_weights.py",
    "config/rules/pairs": "unit/config/rules/test_rules_fusion.py",
    "config/rules/pretrained": "unit/config/rules/test_rules_fusion.py",
    "config/rules/ranges": "unit/config/rules/test_rules_fusion.py",
    "config/rules/learning": "unit/config/rules/test_rules_self_distillation.py",
    "config/schema": "unit/config/test_checking.py",
    "config/stored": "unit/config/targets/test_kinds.py",
    "config/targets/addresses": "unit/config/targets/test_untrusted.py",
    "config/targets/judging": "unit/config/targets/test_known.py",
    "config/targets/resolving": "unit/config/targets/test_known.py",
    "config/targets/signatures": "unit/config/test_checking.py",
    "config/tree": "docs/test_configs.py",
    "core/batch": "unit/models/fusion/test_fusion.py",
    "core/bounds": "unit/core/test_files.py",
    "core/errors": "unit/core/test_files.py",
    "core/hashing": "unit/objectives/negatives/test_negatives.py",
    "core/imports/lazy": "unit/core/test_distributed.py",
    "core/names/modalities": "unit/models/joint/test_joint.py",
    "core/pretrained_files": "unit/inference/pretrained/test_fetching.py",
    "core/process/exits": "unit/core/test_files.py",
    "core/process/lean_imports": "unit/core/test_lock.py",
    "core/process/lock": "unit/core/test_lock.py",
    "core/process/parent": "unit/core/test_parent.py",
    "core/process/provenance": "unit/core/test_files.py",
    "core/process/quiet": "unit/core/test_lock.py",
    "core/process/secrets": "unit/core/test_files.py",
    "core/strict_json": "unit/data/shards/test_hostile_manifests.py",
    "core/suggest": "unit/core/test_files.py",
    "core/tensor_hashing": "unit/evaluation/metrics/test_ground_truth.py",
    "data/captions": "unit/data/test_drawn_texts.py",
    "data/datamodule": "unit/data/loading/test_workers.py",
    "data/decoding/arrays": "unit/data/decoding/test_decode.py",
    "data/decoding/buffers": "unit/data/decoding/test_decode.py",
    "data/decoding/checks": "unit/data/packing/test_packing_index.py",
    "data/decoding/dicom": "unit/data/decoding/test_extra_formats.py",
    "data/decoding/jpeg": "unit/data/decoding/test_decode.py",
    "data/decoding/points": "unit/data/decoding/test_extra_formats.py",
    "data/decoding/tiff": "unit/data/decoding/test_extra_formats.py",
    "data/decoding/values": "unit/data/decoding/test_decode.py",
    "data/errors": "unit/data/test_templates.py",
    "objectives/kernels/ring": "unit/objectives/test_objective_distributed.py",
    "data/loading/token_lengths": "unit/data/loading/test_token_batches.py",
    "data/shards/lengths": "unit/data/packing/test_measure_lengths.py",
    "data/loading/collate": "unit/training/callbacks/test_frozen_cache.py",
    "data/loading/evaluation_loader": "unit/data/loading/test_workers.py",
    "data/loading/frozen_embeddings": "unit/core/test_files.py",
    "data/loading/resume_signature": "unit/data/loading/test_workers.py",
    "data/loading/tally": "unit/data/loading/test_loader.py",
    "data/loading/forked": "unit/data/loading/test_workers.py",
    "data/loading/worker_processes": "unit/data/loading/test_workers.py",
    "data/modality": "unit/training/callbacks/test_frozen_cache.py",
    "data/packing/contents": "unit/data/packing/tables/test_columnar.py",
    "data/packing/index": "unit/data/packing/test_packing_index.py",
    "data/packing/items": "unit/data/packing/test_pack.py",
    "data/packing/jobs": "unit/data/packing/test_pack.py",
    "data/packing/keys": "unit/data/packing/layouts/test_folder.py",
    "data/packing/layouts/find": "unit/data/packing/layouts/test_folder.py",
    "data/packing/layouts/metadata_folder": "unit/data/packing/layouts/test_folder.py",
    "data/packing/layouts/names": "unit/data/packing/layouts/test_folder.py",
    "data/packing/layouts/saved": "unit/data/packing/tables/test_columnar.py",
    "data/packing/layouts/tars": "unit/data/packing/layouts/test_folder.py",
    "data/packing/layouts/walk": "unit/data/packing/layouts/test_folder.py",
    "data/packing/output": "unit/data/packing/test_shares.py",
    "data/packing/pack_shard": "unit/data/packing/test_pack.py",
    "data/packing/parallel": "unit/data/packing/test_pack.py",
    "data/packing/plan": "unit/data/packing/test_pack.py",
    "data/packing/quality": "unit/data/packing/test_pack.py",
    "data/packing/reads": "unit/data/packing/tables/test_columnar.py",
    "data/packing/tables/encoding": "unit/data/packing/tables/test_delimited.py",
    "data/packing/tables/fields": "unit/data/packing/tables/test_columnar.py",
    "data/packing/tables/named_files": "unit/data/packing/tables/test_delimited.py",
    "data/packing/tables/json_rows": "unit/data/packing/tables/test_columnar.py",
    "data/packing/tables/open_table": "unit/data/packing/tables/test_delimited.py",
    "data/packing/tables/reading": "unit/data/packing/tables/test_delimited.py",
    "data/packing/tables/records": "unit/data/packing/tables/test_delimited.py",
    "data/packing/tables/roles": "unit/data/packing/tables/test_columnar.py",
    "data/packing/tables/samples": "unit/data/packing/tables/test_columnar.py",
    "data/packing/tables/splits": "unit/data/packing/layouts/test_folder.py",
    "data/packing/tables/values": "unit/data/packing/tables/test_columnar.py",
    "data/packing/write": "unit/data/shards/test_hostile_manifests.py",
    "data/preview": "unit/evaluation/report/test_page.py",
    "data/reading": "unit/data/test_depth_sources.py",
    "data/sample_decoder": "unit/training/callbacks/test_frozen_cache.py",
    "data/sample_rng": "unit/data/test_templates.py",
    "data/settings": "unit/data/loading/test_workers.py",
    "data/shards/formats": "unit/data/decoding/test_decode.py",
    "data/shards/manifest_errors": "unit/data/shards/test_manifest.py",
    "data/shards/opening": "unit/data/test_source.py",
    "data/shards/paths": "unit/data/shards/test_manifest.py",
    "data/shards/table": "unit/data/shards/test_manifest.py",
    "data/shards/tar_headers": "unit/data/shards/test_tar.py",
    "data/streaming/datamodule": "unit/data/streaming/test_stream.py",
    "data/streaming/shard": "unit/data/streaming/test_stream.py",
    "data/streaming/source": "unit/data/streaming/test_stream.py",
    "data/tokenizers/clip": "unit/data/tokenizers/test_bpe.py",
    "data/tokenizers/corpus": "unit/data/tokenizers/test_bpe.py",
    "data/tokenizers/huggingface": "unit/data/tokenizers/test_bpe.py",
    "data/transforms/array": "unit/data/transforms/test_transforms.py",
    "data/transforms/base": "unit/data/transforms/test_target.py",
    "data/transforms/depth": "unit/data/transforms/test_transforms.py",
    "data/transforms/geometry": "unit/data/transforms/test_transforms.py",
    "data/transforms/image": "unit/data/transforms/test_transforms.py",
    "data/transforms/imu": "unit/data/transforms/test_transforms.py",
    "data/transforms/rand_augment": "unit/data/decoding/test_video.py",
    "data/transforms/sound/audio": "unit/data/transforms/test_transforms.py",
    "data/transforms/sound/huggingface": "unit/core/test_hf_files.py",
    "data/transforms/sound/whisper": "unit/models/encoders/test_whisper.py",
    "data/transforms/text": "unit/data/transforms/test_transforms.py",
    "data/transforms/thermal": "unit/data/transforms/test_transforms.py",
    "data/transforms/video": "unit/data/decoding/test_video.py",
    "evaluation/evaluators/base": "unit/evaluation/report/test_page.py",
    "evaluation/evaluators/duration": "unit/evaluation/report/test_page.py",
    "evaluation/evaluators/probe": "unit/evaluation/report/test_page.py",
    "evaluation/evaluators/retrieval": "unit/evaluation/report/test_page.py",
    "evaluation/evaluators/space": "unit/evaluation/report/test_page.py",
    "evaluation/evaluators/zero_shot": "unit/evaluation/report/test_page.py",
    "evaluation/fusion": "unit/evaluation/test_evaluate_fusion.py",
    "evaluation/metrics/ranking": "unit/evaluation/metrics/test_retrieval.py",
    "evaluation/metrics/tsne": "unit/evaluation/metrics/test_zero_shot.py",
    "evaluation/report/attention": "unit/evaluation/report/test_page.py",
    "evaluation/report/attention_examples": "unit/evaluation/test_evaluate_fusion.py",
    "evaluation/report/charts": "unit/evaluation/report/test_page.py",
    "evaluation/report/embedding_map": "unit/evaluation/report/test_page.py",
    "evaluation/report/sections": "unit/evaluation/report/test_page.py",
    "evaluation/report/tables": "unit/evaluation/report/test_page.py",
    "evaluation/report/tasks": "unit/evaluation/report/test_page.py",
    "evaluation/report/write": "unit/evaluation/test_evaluate.py",
    "evaluation/results": "unit/evaluation/report/test_page.py",
    "evaluation/run": "unit/evaluation/test_evaluate_fusion.py",
    "evaluation/sets": "unit/evaluation/test_evaluate.py",
    "evaluation/task_results": "unit/evaluation/test_evaluate_fusion.py",
    "evaluation/trained_pairs": "unit/evaluation/test_evaluate.py",
    "inference/checkpoint/load": "unit/inference/checkpoint/test_tokenizer_check.py",
    "inference/checkpoint/sharded": "runs/test_fsdp.py",
    "inference/checkpoint/store": "unit/inference/checkpoint/test_file.py",
    "inference/checkpoint/weights": "unit/config/targets/test_untrusted.py",
    "inference/combine": "unit/evaluation/metrics/test_diagnostics.py",
    "inference/embedded_source": "unit/inference/test_embedder.py",
    "inference/export/checks": "unit/inference/export/test_writing.py",
    "inference/export/configuration": "unit/inference/export/test_writing.py",
    "inference/export/frontends": "unit/inference/export/test_writing.py",
    "inference/export/graphs": "unit/inference/export/test_writing.py",
    "inference/export/manifest": "unit/inference/export/test_writing.py",
    "inference/export/onnx_file": "unit/inference/export/test_writing.py",
    "inference/export/preprocessing": "unit/inference/export/test_writing.py",
    "inference/export/reading": "unit/inference/export/test_writing.py",
    "inference/export/runner": "unit/cli/weights/test_export.py",
    "inference/export/runner_file": "unit/inference/export/test_writing.py",
    "inference/publish/layouts": "unit/inference/publish/test_publishing.py",
    "inference/service/api": "unit/inference/service/test_service.py",
    "inference/service/batching": "unit/inference/service/test_service.py",
    "inference/service/engine": "unit/inference/service/test_service.py",
    "inference/service/metrics": "unit/inference/service/test_service.py",
    "inference/service/openapi": "unit/inference/service/test_service.py",
    "inference/service/requests": "unit/inference/service/test_service.py",
    "inference/filling": "unit/models/pretrained/test_pretrained.py",
    "inference/imported": "unit/models/test_full_size.py",
    "inference/importing": "unit/models/pretrained/test_pretrained.py",
    "inference/pretrained/towers": "unit/inference/pretrained/test_filled_towers.py",
    "inference/pretrained/wheels": "unit/inference/pretrained/test_fetching.py",
    "inference/search/builder": "unit/inference/search/test_hostile_requests.py",
    "inference/search/guard": "unit/inference/search/test_hostile_requests.py",
    "inference/search/items": "unit/inference/search/test_hostile_requests.py",
    "inference/search/query": "unit/inference/search/test_index.py",
    "inference/search/serving": "unit/inference/search/test_hostile_requests.py",
    "inference/search/table": "unit/inference/search/test_hostile_requests.py",
    "inference/search/terms": "unit/inference/search/test_hostile_requests.py",
    "models/encoders/audio": "unit/models/encoders/test_encoders.py",
    "models/encoders/category": "docs/test_configs.py",
    "models/encoders/convolutional": "unit/models/encoders/test_encoders.py",
    "models/encoders/features": "unit/models/encoders/test_encoders.py",
    "models/encoders/huggingface_models": "unit/models/encoders/test_huggingface.py",
    "models/encoders/imu": "unit/models/encoders/test_encoders.py",
    "models/encoders/text": "unit/models/encoders/test_encoders.py",
    "models/encoders/transformer": "unit/models/encoders/test_encoders.py",
    "models/encoders/vision": "unit/models/encoders/test_encoders.py",
    "models/fusion/base": "unit/models/fusion/test_fusion.py",
    "models/fusion/cross": "unit/models/fusion/test_fusion.py",
    "models/fusion/latent": "docs/test_configs.py",
    "models/fusion/pooled": "unit/models/fusion/test_fusion.py",
    "models/fusion/stacks": "unit/models/fusion/test_fusion.py",
    "models/fusion_model": "unit/models/fusion/test_fusion_constructed.py",
    "models/heads": "unit/models/test_towers.py",
    "models/encoders/libraries/interleaving": "unit/models/encoders/test_omni_models.py",
    "models/encoders/libraries/timm": "unit/models/encoders/test_timm.py",
    "models/encoders/libraries/visual_parts": "unit/models/encoders/test_vision_language.py",
    "models/encoders/libraries/vision_language": "unit/models/encoders/test_vision_language.py",
    "models/joint/base": "unit/models/joint/test_joint.py",
    "models/joint/fused": "unit/models/joint/test_joint.py",
    "models/joint/template": "unit/models/joint/test_joint.py",
    "models/layers/activations": "unit/models/layers/test_layers.py",
    "models/layers/attending": "unit/models/layers/test_layers.py",
    "models/layers/choices": "unit/models/layers/test_layers.py",
    "models/layers/cross": "unit/models/fusion/test_fusion.py",
    "models/layers/pooling": "unit/models/layers/test_layers.py",
    "models/layers/positions": "unit/models/layers/test_layers.py",
    "models/layers/stems": "unit/models/layers/test_layers.py",
    "models/layers/transformer": "unit/models/layers/test_layers.py",
    "models/pretrained/efficientnet": "unit/models/encoders/test_efficientnet.py",
    "models/pretrained/files": "unit/data/shards/test_hostile_tables.py",
    "models/pretrained/huggingface": "unit/models/pretrained/test_pretrained.py",
    "models/pretrained/imagebind": "unit/models/pretrained/test_pretrained.py",
    "models/pretrained/keys": "unit/models/pretrained/test_pretrained.py",
    "models/pretrained/names": "unit/models/pretrained/test_pretrained.py",
    "models/pretrained/open_clip": "unit/models/pretrained/test_pretrained.py",
    "models/pretrained/plan": "unit/inference/test_adapters.py",
    "models/pretrained/siglip": "unit/models/pretrained/test_pretrained.py",
    "models/pretrained/to_huggingface": "unit/inference/publish/test_publishing.py",
    "models/pretrained/to_open_clip": "unit/inference/publish/test_publishing.py",
    "models/pretrained/whisper": "unit/models/encoders/test_whisper.py",
    "models/tasks/base": "unit/models/tasks/test_captioning.py",
    "models/tasks/labels": "unit/models/tasks/test_tasks.py",
    "models/tasks/numbers": "unit/models/tasks/test_tasks.py",
    "models/tasks/scores": "unit/models/tasks/test_tasks.py",
    "models/tasks/targets": "unit/models/tasks/test_tasks.py",
    "models/tower_optim": "unit/models/test_tuning.py",
    "objectives/host_values": "unit/training/test_synchronisations.py",
    "objectives/gathered_batch": "unit/objectives/test_objective.py",
    "objectives/interfaces": "unit/objectives/test_objective_distributed.py",
    "objectives/kernels/blockwise": "unit/objectives/test_objective.py",
    "objectives/kernels/fused": "docs/test_objectives_page.py",
    "objectives/kernels/hardest": "docs/test_objectives_page.py",
    "objectives/kernels/tiled": "unit/objectives/test_objective.py",
    "objectives/kernels/torch_tiles": "unit/objectives/test_objective.py",
    "objectives/kernels/triton_kernels": "unit/objectives/kernels/test_triton_tiles.py",
    "objectives/losses/margin": "unit/objectives/losses/test_losses.py",
    "objectives/losses/sigmoid": "unit/objectives/losses/test_losses.py",
    "objectives/losses/target": "unit/objectives/losses/test_target_losses.py",
    "objectives/losses/softmax": "unit/objectives/losses/test_losses.py",
    "objectives/matches": "unit/objectives/test_objective.py",
    "objectives/negatives/reweighting": "unit/objectives/negatives/test_negatives.py",
    "objectives/negatives/sampling": "unit/objectives/negatives/test_negatives.py",
    "objectives/negatives/selection": "unit/objectives/negatives/test_negatives.py",
    "objectives/pair": "unit/objectives/test_objective.py",
    "objectives/pair_metrics": "unit/objectives/test_objective.py",
    "training/build": "unit/config/test_instantiating.py",
    "training/callbacks/checkpoint": "docs/test_configs.py",
    "training/callbacks/loss_spikes": "unit/training/callbacks/test_nonfinite.py",
    "training/callbacks/monitored": "unit/training/callbacks/stopping/test_early_stopping.py",
    "training/callbacks/optimizer_overrides": "unit/training/callbacks/test_nonfinite.py",
    "training/callbacks/periodic_evaluation": "unit/training/callbacks/test_nonfinite.py",
    "training/callbacks/progress": "docs/test_configs.py",
    "training/callbacks/rng_state": "unit/training/callbacks/test_nonfinite.py",
    "training/callbacks/schedule_free": "unit/training/callbacks/test_schedule_free_weights.py",
    "training/callbacks/stopping/rank_monitor": "docs/test_configs.py",
    "training/callbacks/stopping/signals": "docs/test_configs.py",
    "training/callbacks/stopping/stop": "docs/test_configs.py",
    "training/callbacks/summary": "docs/test_configs.py",
    "training/failures": "runs/test_failures.py",
    "training/frozen_jobs": "unit/training/callbacks/test_frozen_cache.py",
    "training/loggers/csv": "unit/training/loggers/test_csv_logger.py",
    "training/loggers/logged": "unit/training/loggers/test_others.py",
    "training/loggers/wandb": "docs/test_configs.py",
    "training/modules/base": "unit/training/test_anchor.py",
    "training/modules/contrastive": "runs/test_training_queue.py",
    "training/modules/fusion": "unit/training/test_anchor.py",
    "training/modules/momentum": "unit/objectives/test_candidates.py",
    "training/strategies/ddp_launch": "runs/test_ddp_launch.py",
    "training/strategies/fsdp": "docs/test_configs.py",
    "training/strategies/heartbeat": "runs/test_silent_ranks.py",
    "cli/packing/benchmark": "unit/data/benchmarks/test_benchmarks.py",
    "cli/packing/mine": "runs/test_mined.py",
    "config/rules/similarity": "unit/models/test_token_towers.py",
    "core/similarity/max_similarity": "unit/objectives/test_late_interaction.py",
    "core/similarity/similarities": "unit/objectives/test_late_interaction.py",
    "core/similarity/tokens": "unit/objectives/test_late_interaction.py",
    "inference/search/tokens": "unit/inference/search/test_token_index.py",
    "config/rules/listed": "unit/config/rules/test_rules_listed.py",
    "evaluation/benchmarks": "unit/evaluation/test_published.py",
    "data/benchmarks/catalogue": "unit/data/benchmarks/test_benchmarks.py",
    "data/benchmarks/clip_benchmark": "unit/data/benchmarks/test_benchmarks.py",
    "data/benchmarks/class_names": "unit/data/benchmarks/test_benchmarks.py",
    "data/benchmarks/files": "unit/data/benchmarks/test_benchmarks.py",
    "data/benchmarks/pictures": "unit/data/benchmarks/test_benchmarks.py",
    "data/benchmarks/senses": "unit/data/benchmarks/test_benchmarks.py",
    "data/benchmarks/sounds": "unit/data/benchmarks/test_benchmarks.py",
    "data/negatives/keys": "unit/data/negatives/test_listing.py",
    "data/negatives/lexicon": "unit/data/negatives/test_swaps.py",
    "data/negatives/resolving": "unit/data/negatives/test_listing.py",
    "data/negatives/table": "unit/data/negatives/test_listing.py",
    "inference/publish/pictures": "unit/inference/publish/test_sentences.py",
    "inference/publish/sentences_reading": "unit/inference/publish/test_sentences.py",
    "evaluation/evaluators/choices": "unit/data/benchmarks/test_benchmarks.py",
    "objectives/self_distillation/settings": (
        "unit/objectives/self_distillation/test_self_distillation_settings.py"
    ),
    "objectives/columns": "unit/objectives/test_listed.py",
}


def namesake(module: str) -> Path:
    folder, _, name = module.rpartition("/")
    return TESTS / "unit" / folder / f"test_{name}.py"


@functools.cache
def imports_of(path: Path) -> frozenset[tuple[str, str]]:
    """(module, name) of every `from` import of ours."""
    return frozenset(
        (node.module.partition(".")[2].replace(".", "/"), alias.name)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and re.match(r"multimodal\b", node.module or "")
        for alias in node.names
    )


@functools.cache
def offers(room: str) -> dict[str, str]:
    """Name -> module, of what a room offers."""
    path = PACKAGE / room / "__init__.py"
    return {name: module for module, name in imports_of(path)} if path.is_file() else {}


@functools.cache
def imported_by(path: Path) -> frozenset[str]:
    """The modules of ours that a file imports."""
    found = set()
    for module, name in imports_of(path):
        found |= {module, f"{module}/{name}".lstrip("/"), offers(module).get(name, "")}
    return frozenset(found & set(MODULES))


@functools.cache
def started_by(path: Path) -> set[str]:
    """The commands whose script a test runs or imports, and what its configurations build."""
    text = path.read_text()
    verbs = {module.removeprefix("cli/") for module in MODULES if module.startswith("cli/")}
    found = {
        f"cli/{verb}"
        for verb in verbs
        if re.search(rf"\b{verb}\.py\b|import {verb}\b|run_command\(\"{verb}\b", text)
    }
    if found & {"cli/train"}:
        found |= {"cli/main"}
    whole = ("multimodal.cli.__main__", '"-m", "multimodal.cli"', "run_command(")
    if any(words in text for words in whole):
        found |= {"cli/__main__"}
    if "config_dir().rglob" in text:
        for file in (ROOT / "configs").rglob("*.yaml"):
            for room, name in re.findall(r"_target_: multimodal\.(\w+)\.(\w+)", file.read_text()):
                found.add(offers(room)[name])
    return found


@functools.cache
def loads_lazily(room: str) -> bool:
    return "core.imports.lazy" in (PACKAGE / room / "__init__.py").read_text()


@functools.cache
def reached_by(path: Path) -> set[str]:
    """The modules that a test imports or starts, and those that they import."""
    helpers = {file.stem: file for file in (TESTS / "helpers").glob("*.py")}
    tree = ast.parse(path.read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    files = [path, *(helpers[name] for name in names & helpers.keys())]
    left = set().union(*(imported_by(file) | started_by(file) for file in files))
    reached: set[str] = set()
    while left:
        module = left.pop()
        reached.add(module)
        left |= imported_by(PACKAGE / f"{module}.py") - reached
        if loads_lazily(module.rpartition("/")[0]):
            left |= {"core/imports/lazy"} - reached
    return reached


@pytest.mark.parametrize("module", some(MODULES, every=4))
def test_every_module_says_where_it_is_tested(module):
    if module not in ELSEWHERE:
        expected = namesake(module)
        assert expected.is_file(), f"write {expected}, or add {module} to ELSEWHERE"
        return
    assert not namesake(module).is_file(), f"{module} has a namesake: take it out of ELSEWHERE"
    test = TESTS / ELSEWHERE[module]
    assert module in reached_by(test), f"{test} does not come to {module}"


def test_the_table_names_modules_that_are_there():
    assert ELSEWHERE.keys() <= set(MODULES)


def test_no_two_files_of_tests_have_one_name():
    """Their modules have no packages: pytest would refuse the second one that it collects."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
