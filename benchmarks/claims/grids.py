"""The hyperparameters that are tried for each method, from no effect to a ruined training.

Methods that are compared with each other have grids of the same size: ten settings, or fourteen
where one of them is PGN, which has two hyperparameters.
"""

RHOS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1)
SAM = [f"sam:rho={rho}" for rho in RHOS]
SAM_FINE = [f"sam:rho={rho}" for rho in sorted([*RHOS, 0.01, 0.03, 0.07, 1.5])]
PGN = [
    f"penalized_gradient:r={r}:alpha={alpha}"
    for r in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1)
    for alpha in (0.8, 0.9)
]
GAM = [f"gam:rho={rho}:alpha={alpha}" for rho in (0.05, 0.1, 0.2, 0.3, 0.5) for alpha in (1, 2)]
NOISE = [f"perturbed_gradient:sigma={s}" for s in (0.005, 0.01, 0.02, *RHOS[1:7], 0.5)]
SCALED_NOISE = [f"scaled_perturbed_gradient:sigma={s / 10:g}" for s in (0.01, *RHOS[:9])]
SPECTRAL = [f"spectral_norm_penalty:penalty={s / 10:g}" for s in (0.01, *RHOS[:9])]
DROPOUT = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# Lengths of the plain optimizer's training, as shares of the number of epochs: ten again.
LENGTHS = (0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1)
