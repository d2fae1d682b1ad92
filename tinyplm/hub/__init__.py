"""Model folders of Hugging Face: the one place that knows other libraries' names for things."""

from .folder import ModelFolder as ModelFolder
from .folder import read_folder as read_folder
from .pretrained import Loaded as Loaded
from .pretrained import from_pretrained as from_pretrained
from .pretrained import load as load
from .pretrained import save_pretrained as save_pretrained
from .report import LoadReport as LoadReport
from .report import fill as fill
