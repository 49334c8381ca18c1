"""Rows of a table as PyTorch learns them, with scikit-learn's StandardScaler: weights before and after, and the loss of each step.

Run beside this file: python make_rows.py (torch, scikit-learn, safetensors).
"""

import json, numpy as np, torch, sys, os
from sklearn.preprocessing import StandardScaler
from safetensors.numpy import save_file
torch.manual_seed(5); rng=np.random.default_rng(5)
def make(out, kind):
    os.makedirs(out, exist_ok=True)
    n=15
    x=np.round(rng.normal([4.0,-120.0,0.03],[1.5,40.0,0.01],size=(n,3)),4)
    z=(x-[4.0,-120.0,0.03])/[1.5,40.0,0.01]
    if kind=='classes':
        names=['calm','loud','odd']; y=np.argmax(np.stack([z[:,0]+z[:,1],z[:,2]-z[:,0],-z[:,1]],1),1)
        assert len(set(y))==3
        lab=[names[i] for i in y]
    else:
        y=np.round(0.5*z[:,0]-z[:,1]*z[:,2],4); names=['LABEL_0']; lab=[str(v) for v in y]
    open(f'{out}/rows.csv','w').write('span,depth,rate,label\n'+''.join(f'{a},{b},{c},{l}\n' for (a,b,c),l in zip(x,lab)))
    sc=StandardScaler().fit(x); xs=torch.tensor(((x-sc.mean_)/sc.scale_).astype(np.float32))
    act=torch.nn.Tanh if kind=='classes' else torch.nn.GELU
    net=torch.nn.Sequential(torch.nn.Linear(3,6),act(),torch.nn.Linear(6,6),act(),torch.nn.Linear(6,len(names)))
    def weights():
        d={}
        for i,k in enumerate([0,2,4]):
            d[f'layers.{i}.weight']=net[k].weight.detach().numpy().copy(); d[f'layers.{i}.bias']=net[k].bias.detach().numpy().copy()
        return d
    save_file(weights(), f'{out}/model.safetensors')
    json.dump({"architectures":["MlpForRowClassification"],"model_type":"mlp","hidden_sizes":[6,6],"hidden_act":"tanh" if kind=='classes' else "gelu","dropout":0.0,
      "features":[{"name":c,"mean":m,"deviation":s} for c,m,s in zip(['span','depth','rate'],sc.mean_,sc.scale_)],
      "problem_type":"single_label_classification" if kind=='classes' else "regression",
      "id2label":{str(i):v for i,v in enumerate(names)},"label2id":{v:i for i,v in enumerate(names)}},open(f'{out}/config.json','w'),indent=1)
    t=torch.tensor(y) if kind=='classes' else torch.tensor(y.astype(np.float32))[:,None]
    loss_of=torch.nn.CrossEntropyLoss() if kind=='classes' else torch.nn.MSELoss()
    opt=torch.optim.AdamW(net.parameters(),lr=1e-2,betas=(0.9,0.999),eps=1e-8,weight_decay=0.0)
    losses=[]
    for _ in range(30):
        opt.zero_grad(); l=loss_of(net(xs),t); l.backward(); opt.step(); losses.append(l.item())
    json.dump(losses,open(f'{out}/losses.json','w'))
    save_file(weights(), f'{out}/after.safetensors')
    print(out, losses[0], losses[-1], lab[:5])
base = os.path.dirname(os.path.abspath(__file__))
make(os.path.join(base, 'rows'), 'classes')
make(os.path.join(base, 'rows_numbers'), 'numbers')
