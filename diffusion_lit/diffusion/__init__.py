"""The diffusion model, without networks and sampling.

- `schedules`: base class of processes, the discrete process and its beta schedules
- `processes`: all processes by name, flow matching and EDM
- `parameterization`: prediction types, as c_in, c_skip and c_out
- `weighting`: loss weightings
- `timesteps`: how often training draws each noise level
- `loss`: noising, target, x0 estimate and loss from the four above
- `codecs`, `conditions`: what the network gets as x and y
- `seeds`, `randomness`: random numbers as a function of seed and position
"""
