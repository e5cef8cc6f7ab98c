"""The core: gradient oracles, directions, combinators and Hessian-vector products."""
