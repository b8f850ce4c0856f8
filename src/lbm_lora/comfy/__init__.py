"""LBM in ComfyUI: an LBM as a stock MODEL and VAE, and the verbs as nodes.

ComfyUI itself is never imported at the top of a module here, except for `comfy_api` in the modules that define nodes:
it exists only inside a running ComfyUI. Its licence is GPL-3.0; nothing of it is copied.
"""
