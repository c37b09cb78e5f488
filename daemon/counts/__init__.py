"""From a camera's pixels to electron counts: gain, offset, dose, spikes, and the scaling the network sees.

In: a `Micrograph` and a profile. Out: a `Plane`, of which a backend makes a `Prepared`: what to replace, how to scale.
Front door: `profiles.choose`, then `prepare.plane`; `scaling` is the contract that training and serving share.
"""
