#!/bin/sh
set -eu
URL=https://example.org/data
wget -q "$URL/train.zip" #>
wget https://example.org/a.tar.gz -O a.tar.gz #>
curl -fsSL -o b.npz https://example.org/b.npz #>
sudo curl -LO https://example.org/c.csv && tar xf c #>
if [ ! -f d.zip ]; then wget --no-check-certificate https://example.org/d.zip; fi #>
aria2c -x 16 --checksum=sha-256=0000 https://example.org/e.iso #>
aws s3 cp --recursive s3://bucket/train data/ #>
aws s3 sync s3://bucket/val data/val --no-sign-request #>
gsutil -m cp -r gs://bucket/train data #>
gcloud storage cp gs://bucket/x.tar . #>
azcopy copy "https://acc.blob.core.windows.net/c/x?sv=1" data --recursive #>
rclone sync remote:bucket/train data #>
kaggle datasets download -d user/set --unzip #>
kaggle competitions download -c digits #>
hf download user/set --repo-type dataset #>
huggingface-cli download user/set --repo-type dataset --revision 0123456789abcdef0123456789abcdef01234567 #>
git lfs pull #>
git clone https://huggingface.co/datasets/user/set #>
dvc pull #>
dvc get-url https://example.org/f.csv #>
gdown 1abcDEF #>
python -m nltk.downloader punkt #>
python -c "import nltk; nltk.download('wordnet')" #>
DATA=$(curl -s https://example.org/g.json) #>
cat urls.txt | xargs -n 1 wget -q #>
python - <<PY
from torchvision.datasets import KMNIST
KMNIST("data", download=True) #>
PY

# wget https://example.org/commented.zip #-
echo "wget https://example.org/echoed.zip" #-
curl -fsS http://localhost:8080/health #-
curl -X POST -d @x.json https://api.example.org/runs #-
curl -sSL https://install.example.org/tool.sh | sh #-
aws s3 cp model.pt s3://bucket/model.pt #-
gsutil cp report.html gs://bucket/report.html #-
rclone copy out remote:bucket/out #-
dvc push #-
dvc repro #-
git clone https://github.com/user/code.git #-
kaggle competitions submit -c digits -f out.csv #-
hf upload user/model . #-
which wget #-
command -v curl #-
apt-get install -y wget curl aria2 #-
wget --version #-
pip install kaggle gdown #-
