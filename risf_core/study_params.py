"""Parameters of the studies: one strict model per notebook, as in `risf_core.params`."""
