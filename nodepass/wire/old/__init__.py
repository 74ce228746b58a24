"""The dialects that existing NodePass nodes speak: 1.6, 1.14 and 2.0.

One idea in three spellings: a control link that carries lines, and a pool of links, each good for
one session, known to both ends by a number. What the dialects differ in is in `dialect`; the
modules beside it are codecs without I/O.
"""
