"""Drop-in replacements inside the stacks that people use."""
