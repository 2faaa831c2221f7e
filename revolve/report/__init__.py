"""Tables and pictures of chains, plans and verified steps."""
