"""The core of the library: gradient oracles, directions, combinators, Hessian-vector products."""
