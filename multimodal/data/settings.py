"""How a run loads its data: the settings that loaders, sources and evaluations share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from multimodal.data.decoding.decode import Limits
from multimodal.data.shards.remote import DEFAULT_FOLDER
from multimodal.data.transforms.base import Transform


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are loaded, independent of their order.

    Args:
        num_workers: DataLoader workers per device; 0 loads in the training process, None uses the
            machine's cores, shared by its devices, less one for each training process.
        prefetch: batches that each worker keeps ready.
        max_bad_fraction: of this rank's samples that cannot be read; more stop the run.
        max_bad_run: samples in a row that cannot be read; more stop the run.
        worker_timeout_s: seconds without a batch after which a training worker is an error; None
            waits indefinitely.
        uint8_to_device: pictures and frames whose last step is standardisation cross to the device
            as bytes, a quarter of the numbers, and are standardised there; None: where there is a
            GPU. The inputs are the same.
    """

    num_workers: int | None = 0
    prefetch: int = 2
    max_bad_fraction: float = 0.01
    max_bad_run: int = 100
    worker_timeout_s: float | None = 900.0
    uint8_to_device: bool | None = None


@dataclass(frozen=True)
class OrderSettings:
    """In which order a schedule goes through its sources.

    Args:
        block_shards: shards that are shuffled together.
        drop_last: leaves out the samples of an epoch that do not fill a last batch, others each
            epoch; if False the batch is filled up.
        epoch_steps: with weights, the batches of an epoch; None for as many as draw every sample
            of all sources once.
        max_tokens: most tokens of a device's batch, of pictures, depth maps and sounds cut into
            patches and of texts together; batches then have as many samples as that allows, and
            every sample comes once in a pass. The lengths of samples are recorded by
            ``multimodal shards lengths``. None: batches of ``batch_size``, as those of sources
            without such a modality always are.
    """

    block_shards: int = 16
    drop_last: bool = True
    epoch_steps: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class ReadSettings:
    """How the sources of a run read their shards.

    Args:
        verify_shards: compares the hash of every shard with the manifest when it is first opened;
            one whose content has changed is bad. Reads it once more, at about a gigabyte a second.
        remote_cache_folder: where shards that are behind URLs are put; shared by all processes of a
            node, also of other runs.
        remote_cache_gb: most gigabytes of them; at least the shards of two blocks.
        cache_mb: cache of decoded images, audio and arrays in each worker: worthwhile if most of a
            data set fits. 0 for none.
        limits: sizes that are decoded; None for those of ``Limits``.
    """

    verify_shards: bool = True
    remote_cache_folder: str = DEFAULT_FOLDER
    remote_cache_gb: float = 100.0
    cache_mb: int = 0
    limits: Limits | None = None


@dataclass(frozen=True)
class EvaluationData:
    """How the samples of an evaluation become batches.

    Args:
        transforms: by modality.
        batch_size: samples in a batch, on each rank.
        loading: workers, and how many bad samples are borne.

    Raises:
        ValueError: if ``batch_size`` is below 1.
    """

    transforms: Mapping[str, Transform]
    batch_size: int = 256
    loading: LoaderSettings = field(default_factory=LoaderSettings)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
