"""Control of the norms of kernels in training: penalties, projections and normalization."""
