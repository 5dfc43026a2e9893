"""Training of NoiseRefine's network (arXiv 2412.03895): teacher pairs, multistep score distillation into a LoRA."""
