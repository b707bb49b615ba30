"""Several fine-tuned models in one, or one as its base and a thin delta: a method a page."""
