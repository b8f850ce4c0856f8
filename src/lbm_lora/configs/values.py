"""Words and numbers that the options share with what does the work."""

from typing import Literal

AlphaIs = Literal["auto", "rank", "file"]
"""What alpha in a file means: the rank, whatever stands there (a scaling of 1), or what stands there. `auto`: the rank
in files of the earlier implementation, which are known by their metadata or by their alphas, else what stands there."""

DENSE_UP_TO = 1280
"""Vectors up to this length keep their whole second moment: 6.6 MB in fp32."""

SKETCH_RANK = 256
"""Columns of a longer vector's sketch: 10.5 MB in fp32 at a length of 10240."""

SMALLEST_SIZE = 64
"""Square root of a pixel budget: below it the narrow sides of the long buckets get less than four latent pixels."""
