"""Says whether a text is secret to it, without showing it."""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.secrets import mask_secrets


def main():
    module = AnsibleModule(argument_spec=dict(text=dict(type='str'), password=dict(type='str', no_log=True)))
    text = module.params['text'] or ''
    module.exit_json(hidden=mask_secrets(text) != text)


if __name__ == '__main__':
    main()
