"""The commands of `styledrop`, each a parser and a thin function over the library."""
