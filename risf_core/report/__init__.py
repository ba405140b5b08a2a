"""What a reader sees of the records: helpers of `risf_core.tables` and `figures`, and pictures for notebooks."""
