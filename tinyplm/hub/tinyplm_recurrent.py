"""Recurrent language models, under our own names."""

from .own import Own

TABLE = Own("recurrent_lm", "RecurrentLM", "RecurrentConfig")
sort, read_config, shapes = TABLE.sort, TABLE.read_config, TABLE.shapes
build, write_arrays, write_config = TABLE.build, TABLE.write_arrays, TABLE.write_config
