"""The grid of Quirke et al. (arXiv 2509.25596), at a size that two cores train in an afternoon."""
