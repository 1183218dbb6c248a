import medmnist
import nltk
import openml
import seaborn as sns
import sklearn.datasets
import torch
from medmnist import INFO, PathMNIST
from nltk.corpus import stopwords
from sklearn.datasets import fetch_openml, load_iris, make_blobs
from sklearn import datasets as skd

a = sklearn.datasets.fetch_california_housing()  #>
b = fetch_openml("mnist_784", version=1)  #>
c = fetch_openml(data_id=40996)  #>
d = skd.fetch_20newsgroups(subset="train")  #>
e = openml.datasets.get_dataset(61)  #>
f = openml.tasks.get_task(31)  #>
nltk.download("punkt")  #>
g = sns.load_dataset("tips")  #>
h = torch.hub.load("pytorch/vision:v0.10.0", "resnet18", pretrained=True)  #>
i = torch.hub.load("user/repo", "model")  #>
j = torch.hub.load_state_dict_from_url("https://example.org/w-01234567.pth", check_hash=True)  #>
torch.hub.download_url_to_file("https://example.org/x.pt", "x.pt")  #>
k = PathMNIST(split="train", download=True)  #>
m = getattr(medmnist, INFO["bloodmnist"]["python_class"])(split="test")  #>

n = load_iris()  #-
o, p = make_blobs(10)  #-
q = stopwords.words("english")  #-
r = torch.load("x.pt", weights_only=True)  #-
s = torch.hub.get_dir()  #-
sns.histplot([1, 2])  #-
t = skd.load_svmlight_file("a.svm")  #-
nltk.word_tokenize("a b")  #-
torch.hub.set_dir("cache")  #-

from sklearn.datasets._california_housing import fetch_california_housing

fetch_california_housing()  #>
nltk.data.load("https://example.org/tagger.pickle")  #>
nltk.data.load("tokenizers/punkt/english.pickle")  #-
