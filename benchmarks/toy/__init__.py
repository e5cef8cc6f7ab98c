"""The toy problem of the PACGen paper."""
