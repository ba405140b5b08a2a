"""Open-vocabulary detection by region distillation (RKD; Bangalath et al. 2022, arXiv 2207.03482)."""
