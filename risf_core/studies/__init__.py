"""Studies: extensions and controls that are no part of the reproduction. The core does not import them."""
