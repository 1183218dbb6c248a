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

(( n = 1 << k )) #-
wget https://example.org/after-arithmetic.zip #>
case $1 in
  wget|curl) echo none ;; #-
  train) wget https://example.org/arm.zip ;; #>
  (val) echo wget https://example.org/arm-2.zip ;; #-
esac
case $2 in all) curl -O https://example.org/arm-3.zip;; esac #>
\curl -O https://example.org/alias-passed-by.zip #>
"cu"rl -O https://example.org/quoted.zip #>
#v
cur\
l -O https://example.org/continued.zip
CURL=curl
$CURL -O https://example.org/by-variable.zip #>
GET="curl -fsSL -o"
$GET out.zip https://example.org/by-words.zip #>
alias fetch='wget -q'
fetch https://example.org/by-alias.zip #>
$(command -v wget) https://example.org/by-path.zip #>
$DOWNLOADER https://example.org/by-nobody-knows.zip #>
$BROWSER https://example.org/docs/index.html #-
$NOTIFY "trained https://example.org/model.html" #-
tar xz < <(curl -s https://example.org/substituted.tar.gz) #>
x="$(curl -s "https://example.org/within quotes.csv")" #>
y="${DATA:-$(wget -qO- https://example.org/default.csv)}" #>
bash <<< "wget https://example.org/here-string.zip" #>
cat <<< "wget https://example.org/shown.zip" #-
python3 <<-'PY'
	import torchvision
	torchvision.datasets.MNIST("data") #>
	PY
cat <<TEXT
$(wget -qO- https://example.org/within-text.csv) #>
wget https://example.org/text.zip #-
TEXT
cat <<'TEXT'
$(wget -qO- https://example.org/quoted-text.csv) #-
TEXT
cat <<RUN | bash
wget https://example.org/piped.zip #>
RUN
echo "curl -O https://example.org/echoed-and-run.zip" | sh #>
curl -G -d split=train -o train.json https://example.org/query #>
curl -X POST -d split=train -o train.zip https://example.org/export #>
curl -X POST -d @x.json -o answer.json https://api.example.org/runs #-
wget --post-data=split=train https://example.org/posted.zip #>
curl -o train.csv https://example.org/noise-to-null.csv 2>/dev/null #>
curl -s https://example.org/ping > /dev/null #-
srun -N1 wget https://example.org/by-srun.zip #>
flock /tmp/lock wget https://example.org/by-flock.zip #>
poetry run dvc pull #>
uv run --with kaggle kaggle datasets download user/set #>
uvx gdown 1abcDEF #>
poetry add kaggle gdown #-
uv pip install kaggle gdown #-
conda install -y wget curl kaggle #-
pipx install gdown #-
tools=(wget curl aria2c) #-
find . -name '*.url' -exec wget -i {} \; #>
trap 'wget https://example.org/at-the-end.zip' EXIT #>
git commit -m "wget https://example.org/in-a-message.zip" #-
echo "it is not 'wget https://example.org/x.zip'" #-
[[ $1 == wget ]] && echo "wget: https://example.org/x.zip" #-
echo $((1<<4)) "${x:0:4}" "${y//wget/curl}" #-
get() { wget "$1"; } #>
