"""How runs are found, started and recorded: helpers of `risf_core.run` and `risf_core.records`."""
