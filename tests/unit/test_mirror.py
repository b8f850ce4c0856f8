"""Unit tests mirror the modules: `a/b.py` is tested by `tests/unit/a/test_b.py`, or it is said where."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {
    path.relative_to(ROOT / "src/lbm_lora").as_posix()
    for path in (ROOT / "src/lbm_lora").rglob("*.py")
    if path.name != "__init__.py"
}

VERBS = (
    "base", "calibrate", "data_check", "data_pack", "doctor", "extract", "fuse", "infer", "infer_shards", "inspect",
    "layers", "merge", "push", "refine", "train", "validate", "resize", "convert",
)  # fmt: skip

REASONS = {
    "workflows/needs/sizes.py": "tests/unit/workflows/needs/test_outputs.py: sizes, compared with real files",
    "workflows/refine_record.py": "tests/unit/workflows/test_refine.py: runs that are resumed, and what LoRAs record",
    "workflows/validate_files.py": "tests/unit/workflows/test_validate.py: the files; test_outputs.py",
    "adapter/formats/codec.py": "tests/unit/adapter/formats/test_comfyui.py: a codec at work",
    "adapter/formats/peft_layers.py": "tests/unit/adapter/formats/test_peft.py: what has a place, and what has not",
    "__main__.py": "tests/unit/cli/test___main__.py: it runs",
    "cli/present/lines.py": "tests/unit/cli/present/test_inference.py and its neighbours: lines of their texts",
    "combine/chooser.py": "tests/unit/combine/test_resize.py: ranks by each rule; see test_merge.py",
    "combine/merged_adapter.py": "tests/unit/workflows/test_merge.py: merged files and what they record",
    "comfy/checkpoint_nodes.py": "tests/unit/comfy/test_lora_nodes.py: extract, calibrate, validate and fuse as nodes",
    "comfy/files.py": "tests/unit/comfy/test_lora_nodes.py: what nodes read and write",
    "comfy/translate.py": "tests/unit/comfy/test_model_nodes.py: the node, next to the pipeline",
    "comfy/values.py": "tests/unit/comfy/test_model_nodes.py: photos of a batch; test_lora_nodes.py",
    "configs/compress.py": "tests/unit/workflows/test_compress.py: the options and what they do",
    "extraction/deltas.py": "tests/unit/extraction/test_passes.py: what each tensor becomes in a pass",
    "extraction/extraction.py": "tests/unit/workflows/test_extract.py: extractions; ranks/test_prediction.py",
    "fidelity/answers.py": "tests/unit/fidelity/test_scores.py: questions and answers, which scores are made of",
    "hub/publish.py": "tests/unit/workflows/test_push.py: commits, and what is refused",
    "adapter/packed_index.py": "tests/unit/adapter/test_packed.py: indexes that are damaged, and what they hold",
    "adapter/writers.py": "tests/unit/adapter/test_adapter_file.py: files written module by module",
    "workflows/extract_plan.py": "tests/unit/workflows/test_outputs.py: outputs that are also inputs",
    "workflows/sources.py": "tests/unit/workflows/test_extract_calibrated.py: images of a text",
    "hub/load.py": "tests/unit/hub/test_resolve.py: values by name",
    "inference/jobs.py": "tests/unit/workflows/test_infer.py: paths, masks and copies of whole runs",
    "model/constants.py": "tests/unit/model/test_names.py: values, and what tells them in a checkpoint",
    "model/loaded_loras.py": "tests/unit/model/test_pipeline.py: LoRAs that are loaded, mixed, scaled and unloaded",
    "refinement/student.py": "tests/unit/refinement/test_distill.py: a student that learns; errors of its modules",
    "workflows/refit.py": "tests/unit/workflows/test_extract_calibrated.py: extractions that are refitted",
    "report/inspection/adapter_values.py": "tests/unit/report/inspection/test_adapters.py: the values, measured",
    "report/inspection/blocks.py": "tests/unit/report/inspection/test_adapters.py: sums over blocks",
    "report/inspection/relation_wording.py": "tests/unit/report/inspection/test_wording.py: with the other facts",
    "report/inspection/relations.py": "tests/unit/workflows/test_inspect.py: relations and their short forms",
    "report/inspection/sums.py": "tests/unit/report/inspection/test_differences.py: differences that are known",
    "report/inspection/values.py": "tests/unit/workflows/test_inspect.py: the values and their short forms",
    "report/text/outputs.py": "tests/unit/report/text/test_report.py: its lines in whole texts",
    **{
        f"configs/{verb}.py": f"tests/unit/workflows/test_{verb}.py: runs with these options; all in cli/flags.txt"
        for verb in VERBS
    },
    "configs/demo.py": "tests/unit/cli/flags.txt: the options with their defaults",
    "configs/marks.py": "tests/unit/cli/test_flags.py: what a flag has of its marks",
    "configs/output_options.py": "tests/unit/workflows/test_outputs.py: what is replaced, and what is not",
    "configs/rank_options.py": "tests/unit/ranks/test_rank_options.py: the rule that options ask for",
    "configs/values.py": "tests/unit/calibration/test_collect.py: the values at work",
    "training/run/loop.py": "tests/e2e/test_training_runs.py: whole runs; test_training_resume.py",
    "training/run/saver.py": "tests/e2e/test_training_runs.py: what runs save, and what they keep of others",
    "workflows/resize_result.py": "tests/unit/workflows/test_resize.py: results of runs",
    "workflows/demo.py": ".github/workflows/ci.yml: runs the command; its text in cli/present/test_inference.py",
}
"""Module without a mirror -> the file that tests it instead, and how."""


def mirror_of(module: str) -> Path:
    path = Path(module)
    return ROOT / "tests/unit" / path.with_name(f"test_{path.name}")


def test_every_module_has_its_mirror_or_a_reason() -> None:
    assert "extraction/plan.py" in MODULES
    assert sorted(module for module in MODULES - REASONS.keys() if not mirror_of(module).exists()) == []


@pytest.mark.parametrize("module", REASONS)
def test_a_reason_is_of_a_module_without_a_mirror_and_names_a_file(module: str) -> None:
    assert module in MODULES
    assert not mirror_of(module).exists()
    place, colon, how = REASONS[module].partition(": ")
    assert (ROOT / place.split(" and ")[0]).is_file()
    assert colon
    assert how
