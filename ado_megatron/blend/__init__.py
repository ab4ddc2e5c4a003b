"""What is mixed: prefixes with weights come in, domains with priors, shares and caps go out.

In: the words of a blend (`0.7 code 0.3 web`), the samples of one epoch of each prefix, the user's grouping and caps.
Out: `Domains`, the same on every rank; how often data may be repeated and when it runs out.

    domains = Domains.build(["data/code", "data/web"], [0.7, 0.3], lengths_C, options)

    domains.py        prefixes (datasets), grouped into domains; priors, shares, identities
    epoch_caps.py     caps on epochs, supply, and when a domain runs out
    indexed_files.py  .bin/.idx pairs and the words of a blend
    static_export.py  the mixture so far as fixed weights of a framework's own blend
"""

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.options import BlendOptions

__all__ = ["BlendOptions", "Domains"]
