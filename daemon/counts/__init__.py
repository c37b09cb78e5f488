"""From a camera's pixels to electron counts: gain, offset, dose, spikes, and the scaling of the network's input.

In: a `Micrograph` and a profile. Out: a `Plane`, from which a backend makes a `Prepared`: what to replace, and scaling.
Front door: `profiles.choose`, then `prepare.plane`; `scaling` is the contract that training and serving share.
"""
