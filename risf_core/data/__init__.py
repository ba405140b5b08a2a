"""Data sources: everything becomes one form, `DetectionData`."""
