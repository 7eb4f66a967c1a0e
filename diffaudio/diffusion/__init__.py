"""The mathematics between noise and latents.

noise_schedule       noise levels of training and of sampling
loss                 what the U-Net predicts (epsilon, v, flow), and its training loss
guidance             classifier-free guidance (CFG) and its variants
solvers              one step from a noise level to the next: Euler, Heun, DPM-Solver++, LMS, PNDM, …
sampler_table        the samplers by name, with their settings
sampling             the loop from noise to latents
diffusers_scheduler  sampling by a scheduler of diffusers, for checkpoints that come with one
"""
