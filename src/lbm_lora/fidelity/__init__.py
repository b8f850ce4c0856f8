"""A model at points of the bridge, and in images, against the tuned model's answers (layer L5).

One idea for everybody who asks how near a LoRA comes:

- `points`: what a denoiser is given
- `answers`: what a model makes of it
- `output_errors`: how far two answers are apart
- `scores`: what a report says of answers
- `comparison`: all of it for several variants
- `trial`: all of it for a LoRA that is not written yet
"""
