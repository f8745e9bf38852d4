"""From a plan and a model to latents."""
