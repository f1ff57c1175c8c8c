"""How closely binary coders and stock ones reconstruct, and at how many bits a token."""
