"""The C4 Faster R-CNN with gradient-decoupled layers (DeFRCN, RISF)."""
