"""What a network learns from: micrographs judged clean, simulated specimens, and the exposures drawn from both.

In: a folder of micrographs, and a seed. Out: batches as the daemon would scale them, each a function of its index.
Front door: `truths.load_truths` prepares them once, `samples.batch` draws.
"""
