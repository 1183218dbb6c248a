from functools import partial

import torchaudio
import torchtext
from torchaudio.datasets import SPEECHCOMMANDS
from torchtext.datasets import *
from torchtext.utils import download_from_url

speech = torchaudio.datasets.LIBRISPEECH("data", url="train-clean-100", download=True)  #>
commands = SPEECHCOMMANDS("data", download=True)  #>
reviews = torchtext.datasets.IMDB(split="train")  #>
news = AG_NEWS(split="train")  #>
lazy = partial(torchaudio.datasets.YESNO, download=True)  #>
path = download_from_url("https://example.org/wiki.txt")  #>

wave, rate = torchaudio.load("a.wav")  #-
info = torchaudio.info("a.wav")  #-
vocab = torchtext.vocab.build_vocab_from_iterator([["a"]])  #-
