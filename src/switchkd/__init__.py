"""Visual-switch knowledge distillation for vision-language models."""
