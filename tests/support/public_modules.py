"""The modules whose names are public."""

PUBLIC_MODULES = [
    "flatreg",
    "flatreg.typing",
    "flatreg.methods",
    "flatreg.wrappers",
    "flatreg.measures",
    "flatreg.lipschitz",
    "flatreg.linen",
    "flatreg.nnx",
    "flatreg.plots",
    "flatreg.checkpoint",
]
