"""How activations are kept between the forward pass and their use."""
