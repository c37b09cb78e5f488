"""The settings file and the folders it names.

In: a YAML file and the command line's folders. Out: a checked `Config`; errors name file, line, key, cause and remedy.
Front door: `config.load` and `config.Config`.
"""
