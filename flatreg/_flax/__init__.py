"""The parts of a train step that Linen and NNX share. Nothing in this package imports Flax.

* ``clean_pass``: the pass at the unperturbed parameters, and the oracle that the method calls.
* ``guarded_update``: one update of the chain, skipped as a whole if a pass was not finite.
* ``loss_scale``: scaling the loss for float16, unscaling the gradients, adjusting the scale.
* ``chain_order``: errors for a chain whose transformations are in the wrong order.
* ``metrics``: what a loss may return, and the metrics that a step adds to it.
* ``classification_loss``: softmax cross-entropy with the accuracy as a metric.
* ``oracles``: an oracle with a function applied to its gradients.
* ``opt_states``: finding the states of a given type inside an optimizer state.
"""
