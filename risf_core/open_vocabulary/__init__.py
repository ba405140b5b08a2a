"""Open-vocabulary detection by region distillation: RKD / object-centric OVD (Bangalath et al. 2022, arXiv 2207.03482)."""
