"""What is mixed: prefixes with weights come in, domains with their sizes, starting shares and caps go out.

In: the words of a blend (`w1 prefix1 w2 prefix2 …`) and the `.bin/.idx` pairs that they name. Out: `Domains`, which
says of each dataset (one per prefix) its domain, its share in it, its length and its identity in the sample order; the
most samples of each that a run may draw; and, on the way back, a blend of fixed weights for an unmodified Megatron.

    weights, prefixes = parse_blend("0.7 wiki 0.3 code".split(), "--data-path")
    lengths = [read_prefix(prefix).samples(seq_length) for prefix in prefixes]
    domains = Domains.build(prefixes, weights, lengths, BlendOptions())

    domains.py        prefixes to domains, prior, groups
    epoch_caps.py     how often data may be repeated, and when it runs out
    indexed_files.py  .bin/.idx pairs as their indices describe them, the words of a blend
    static_export.py  back to a blend of fixed weights
    options.py        BlendOptions
"""

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.indexed_files import parse_blend, read_prefix
from ado_megatron.blend.options import BlendOptions

__all__ = ["BlendOptions", "Domains", "parse_blend", "read_prefix"]
