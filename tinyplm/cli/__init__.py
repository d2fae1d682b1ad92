"""The command line: verbs that call recipes, and the words around them."""

from .main import main as main
