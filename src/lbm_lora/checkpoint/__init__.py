"""Read and write checkpoint files as tensors by name, without knowledge of LoRA or LBM."""

from lbm_lora.checkpoint.fingerprint import Fingerprint, FingerprintBuilder, differing, fingerprint
from lbm_lora.checkpoint.kinds import NATIVE, STATISTICS_KEY, FileKind, kind_of
from lbm_lora.checkpoint.pairing import Pairing, ParamPair, pair
from lbm_lora.checkpoint.reader import Checkpoint, CheckpointLike, Component, open_checkpoint
from lbm_lora.checkpoint.spec import TORCH_NAMES, TensorSpec, bytes_of, dtype_name, dtype_of
from lbm_lora.checkpoint.writers import SafetensorsWriter, TorchWriter, entry_bytes
