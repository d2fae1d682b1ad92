"""Recurrent encoders and decoders, under our own names."""

from .own import Own

TABLE = Own("seq2seq", "Seq2Seq", "Seq2SeqConfig")
sort, read_config, shapes = TABLE.sort, TABLE.read_config, TABLE.shapes
build, write_arrays, write_config = TABLE.build, TABLE.write_arrays, TABLE.write_config
