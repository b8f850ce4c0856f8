"""Compare a model with the tuned model, at points of the bridge and in images.

Every measurement of how close a LoRA gets is built from these:

- `points`: inputs of a denoiser
- `answers`: outputs of a model
- `output_errors`: distance between two answers
- `comparison`: answers of several variants as values of a report
- `trial`: all of these for a LoRA that is not written yet
"""
