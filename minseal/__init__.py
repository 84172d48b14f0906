"""minseal: SEAL (Self-Adapting Language Models, arXiv 2506.10943) from scratch, small enough to read in an afternoon."""

from .errors import UserError
from .inner import InnerConfig, adapt
from .lora import Adapters, LoRAConfig, attach
from .model import GPT, GPTConfig
from .outer import OuterConfig, exam_score, rest_em, try_out
from .sample import sample
from .selfedit import Document, InvalidSelfEdit, SelfEdit
from .tasks.knowledge import Knowledge
from .tasks.passages import Passage, read_passages
from .tasks.people import People, toy_passages
from .tokenizer import Tokenizer
from .weights import load, save
